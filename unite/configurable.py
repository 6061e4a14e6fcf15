"""Objects that remember how they were made, so that a checkpoint can make them again.

Lightning stores constructor arguments in a checkpoint. An ``nn.Module`` among them would be pickled, and a pickled
class neither loads with ``weights_only=True`` nor survives a rename. So modules remember their arguments as plain
values, and :func:`as_config` writes them as the same ``class_path`` / ``init_args`` dictionaries that a yaml holds.
"""

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from unite.errors import UserError


def own_settings(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a module among the hyper-parameters of its checkpoint, without Lightning's notes (``_NAME``)."""
    return {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}


class Configurable:
    """Base of every class that a yaml can name; records the arguments of the constructor in ``init_args``."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the object and note its arguments (``copy.deepcopy`` calls this without any, and restores them)."""
        instance = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(instance, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        check_choices(cls.__name__, get_type_hints(cls.__init__), arguments)
        object.__setattr__(instance, "init_args", arguments)
        return instance


def check_choices(owner: str, types: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse a value that is not among those of its ``Literal`` type: what the command line does, for Python.

    Raises:
        UserError: There is such a value.
    """
    for name, value in values.items():
        choices = get_args(types.get(name)) if get_origin(types.get(name)) is Literal else None
        if choices is not None and value not in choices:
            raise UserError(f"{owner}.{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def class_path(cls: type) -> str:
    """Where a yaml finds a class: in its package, if that exports it, so that files can be moved within."""
    package = cls.__module__.rpartition(".")[0]
    home = package if getattr(sys.modules.get(package), cls.__name__, None) is cls else cls.__module__
    return f"{home}.{cls.__qualname__}"


def as_config(value: Any) -> Any:
    """Plain dictionaries, lists, numbers and strings that describe ``value``.

    Raises:
        TypeError: ``value`` is an object that no yaml could describe.
    """
    if isinstance(value, Configurable):
        return {"class_path": class_path(type(value)), "init_args": arguments_as_config(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_config(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} into a checkpoint; derive it from unite.Configurable")


def arguments_as_config(instance: Configurable) -> dict[str, Any]:
    """The ``init_args`` of ``instance`` in the form of :func:`as_config`."""
    return {name: as_config(value) for name, value in instance.init_args.items()}
