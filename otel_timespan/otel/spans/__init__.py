"""From events to spans, without sending any.

`mapping` is fed event by event and knows the open `tasks`; `plain` does so for timespans that belong to no task. `runs`
says which root a task has and when that ends, `paths` finds a run's critical path, `ids` derives the ids, `failures`
says what is told of an exception. Out come `spandata`; `bodyspan` is the one that is current while a body runs.
`redact` and `limits` cut what may not leave.
"""
