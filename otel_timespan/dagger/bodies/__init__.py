"""One body, under any driver: its call, its result, its ending."""
