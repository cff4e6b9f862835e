"""What stands for a value, as type checkers see it: tasks, chunks, files and shards are a `Reference[T]`.

As an argument of a task a reference is accepted where its value is. At run time there is nothing of it: a base
class more would be walked each time that a task goes.

See docs/typing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

__all__ = ["Reference", "Value"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Value = TypeVar("Value", covariant=True, default=Any)
    _Hidden = TypeVar("_Hidden", covariant=True, default=Any)

    class Reference(Generic[Value, _Hidden]):
        """Stands for a `Value`. Plain `DTask` is `DTask[Any]`.

        Each class says `NoReturn` for what is hidden, and `Argument` asks for an `A` there: it makes no difference to
        what fits, but where the value is Any, mypy would else take the reference itself for a possible value.
        """

else:
    Value = Any

    class _Nothing:
        def __getitem__(self, value: Any) -> type:
            return object

    Reference = _Nothing()
