"""What type checkers know of `spawn`. Not loaded at run time.

A call is looked up in these overloads from the top. What they can say, and what not, is told in docs/typing.md.
"""

# One overload covers a part of the next: the first that fits is meant, and both checkers take that one.
# mypy: disable-error-code="overload-overlap, overload-cannot-match"

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from typing_extensions import Unpack

from .data.chunks import Chunk
from .options.keywords import TaskKeywords
from .options.options import Options
from .tasks.dtask import DTask
from .tasks.references import Reference

__all__ = ["Argument", "ArgumentsMissing", "Body", "Missing", "Spawn", "SpawnCall"]

T = TypeVar("T")
U = TypeVar("U")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
G = TypeVar("G")
P = ParamSpec("P")
Hidden = TypeVar("Hidden", covariant=True)


class _Nobody(Generic[Hidden]):
    """What nothing is."""


Nobody: TypeAlias = "_Nobody[Nobody]"
"""Names itself: in a union with that, mypy looks for an `A` inside of references first."""

Argument: TypeAlias = "A | Reference[A, A] | Nobody"
"""What is accepted where a body takes an `A`."""

Body: TypeAlias = "Coroutine[Any, Any, T] | Chunk[T]"
"""What a body gives that is not itself the result: a coroutine is awaited, a chunk stands for its content."""


class ArgumentsMissing:
    """Stands in the type of a call of a function without arguments that needs some, so that errors name it."""


Missing: TypeAlias = "Coroutine[U, ArgumentsMissing, ArgumentsMissing]"
"""The type of such a call. Checkers refuse it in every use: nobody awaits that coroutine, nothing tells the `U`."""


class SpawnCall(Protocol):
    """`spawn`, with options or without."""

    # By position: each argument is a value or stands for one.
    @overload
    def __call__(self, f: Callable[[], Body[T]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[], T], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[A], Body[T]], a: Argument[A], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[A], T], a: Argument[A], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A, B], Body[T]], a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[A, B], T], a: Argument[A], b: Argument[B], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A, B, C], Body[T]], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A, B, C], T], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E, G], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E, G], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...

    # The same with options.
    @overload
    def __call__(self, f: Callable[[], Body[T]], options: Options, /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[], T], options: Options, /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A], Body[T]], options: Options, a: Argument[A], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[[A], T], options: Options, a: Argument[A], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A, B], Body[T]], options: Options, a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[[A, B], T], options: Options, a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E, G], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[[A, B, C, D, E, G], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...

    # With keywords: those are values.
    @overload
    def __call__(self, f: Callable[P, Body[T]], /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[Concatenate[A, P], Body[T]], a: Argument[A], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[Concatenate[A, P], T], a: Argument[A], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, P], Body[T]],
        a: Argument[A],
        b: Argument[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[Concatenate[A, B, P], T], a: Argument[A], b: Argument[B], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, P], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, P], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[P, Body[T]], options: Options, /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[P, T], options: Options, /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, P], Body[T]],
        options: Options,
        a: Argument[A],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[Concatenate[A, P], T], options: Options, a: Argument[A], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, P], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, P], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, P], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, P], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...

    # An argument is missing: no call at all.
    @overload
    def __call__(self, f: Callable[Concatenate[NoReturn, ...], object], /) -> Missing[U]: ...

    # All by keyword, and each stands for a value: which names there are is not known.
    @overload
    def __call__(self, f: Callable[..., Body[T]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[..., T], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[..., Body[T]], options: Options, /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self, f: Callable[..., T], options: Options, /, **kwargs: Reference) -> DTask[T]: ...

    # More than six.
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, D, E, G, ...], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, D, E, G, ...], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, D, E, G, ...], Body[T]],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[A, B, C, D, E, G, ...], T],
        options: Options,
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...

    # With the option `meta` a chunk arrives as it is.
    @overload
    def __call__(
        self,
        f: Callable[Concatenate[Chunk, ...], Body[T]],
        options: Options,
        a: Reference,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self, f: Callable[Concatenate[Chunk, ...], T], options: Options, a: Reference, /, *args: Any, **kwargs: Any
    ) -> DTask[T]: ...

    # A function that is the result of a task.
    @overload
    def __call__(self, f: Reference, /, *args: Any, **kwargs: Any) -> DTask: ...


class Spawn(SpawnCall, Protocol):
    """The type of `spawn`: a function that has a method."""

    @staticmethod
    def opts(**options: Unpack[TaskKeywords]) -> SpawnCall:
        """`spawn` with these options."""
        ...
