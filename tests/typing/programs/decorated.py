"""`task` keeps the function's parameters: a call is a task, `.local` is the function."""

from typing_extensions import assert_type

from otel_timespan import DTask, spawn, task, tochunk


@task
def f(x: int) -> str:
    """A docstring."""
    return str(x)


@task(name="g", retries=2)
def g(x: int, y: str = "", *, z: int = 3) -> list[int]:
    return [x, len(y), z]


@task
async def co(x: int) -> str:
    return str(x)


@task
def none() -> None: ...


class Model:
    def __init__(self, n: int) -> None:
        self.n = n

    @task
    def scaled(self, x: int, y: float = 1.0) -> float:
        return self.n * x * y

    @task(retries=2)
    async def loaded(self, path: str) -> bytes:
        return path.encode()

    @task
    @classmethod
    def of(cls, x: int) -> "Model":
        return cls(x)

    @task
    @staticmethod
    def named(x: int) -> str:
        return str(x)


model = Model(1)
number = spawn(len, "a")

assert_type(f(1), DTask[str])
assert_type(f(x=1), DTask[str])
assert_type(f(number), DTask[str])
assert_type(f(x=number), DTask[str])
assert_type(f(tochunk(1)), DTask[str])
assert_type(f.local(1), str)
assert_type(g(1, "a"), DTask[list[int]])
assert_type(g(number, f(1)), DTask[list[int]])
assert_type(g(number, z=1), DTask[list[int]])
assert_type(g(1, z=number), DTask[list[int]])
assert_type(g.local(1, z=2), list[int])
assert_type(co(1), DTask[str])
assert_type(co(number), DTask[str])
assert_type(none(), DTask[None])
assert_type(model.scaled(1), DTask[float])
assert_type(model.scaled(number, 2.0), DTask[float])
assert_type(model.scaled(x=1), DTask[float])
assert_type(model.scaled.local(1), float)
assert_type(model.loaded("a"), DTask[bytes])
assert_type(Model.scaled(model, 1), DTask[float])
assert_type(Model.of(1), DTask[Model])
assert_type(model.of(number), DTask[Model])
assert_type(Model.named(1), DTask[str])
assert_type(model.named(number), DTask[str])
Model.of("wrong")  # error
model.named("wrong")  # error
model.scaled("wrong")  # error
model.scaled()  # error
model.loaded(1)  # error
f("wrong")  # error
f(f(1))  # error
f()  # error
f(1, 2)  # error
f(y=1)  # error
f.local("wrong")  # error
g(1, z="wrong")  # error
co("wrong")  # error
none(1)  # error
task(nam="x")  # error
task(3)  # error


async def main() -> None:
    assert_type(await co.local(1), str)
    assert_type(await co(1), str)
