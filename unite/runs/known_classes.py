"""What a file from elsewhere may name: reading it must not import, and so run, what came along with it.

Settings name classes, and jsonargparse imports what they name: wherever a ``class_path`` stands, and wherever a plain
string stands for a class or a function. So all of a file is looked at before any of it is used.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

from unite.errors import UserError, on_one_line
from unite.files.version import __version__

#: Packages whose classes a run folder may name.
KNOWN_MODULES: Final = (
    "unite.",
    *(f"lightning.pytorch.{name}." for name in ("callbacks", "loggers", "plugins", "profilers", "strategies")),
)

_INSTANTIATOR: Final = "lightning.pytorch.cli.instantiate_module"
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_TRUST_HINT: Final = "if you trust the folder, add --trust, or give a --config of your own that names it"

#: Most settings that a file may have, and their depth; ours have a few hundred, ten deep.
MAX_SETTINGS: Final = 100_000
MAX_DEPTH: Final = 100

_is_trusting = False


@contextmanager
def trusting(is_asked: bool = True) -> Iterator[None]:
    """Within the block, if asked: run folders may name any class and any command."""
    global _is_trusting
    before, _is_trusting = _is_trusting, _is_trusting or is_asked
    try:
        yield
    finally:
        _is_trusting = before


def require_known_classes(settings: Mapping[str, Any], path: Path, owner: type) -> None:
    """Refuse settings of a model that name anything but encoder and adapters, of this package or imported by the user.

    Arguments that the classes do not have are refused as well, and strings that jsonargparse could take for a class.

    Args:
        settings: Arguments of :class:`~unite.module.UniteModule`, as a checkpoint or an exported folder has them.
        path: The file that they are from.
        owner: The class whose arguments they are.

    Raises:
        UserError: There is another name, or an unknown argument.
    """
    from unite.modalities.base import ModalityAdapter  # slow to import
    from unite.nn.generative_encoder import GenerativeEncoder

    if _is_trusting:
        return
    if settings.get("_instantiator", _INSTANTIATOR) != _INSTANTIATOR:
        raise UserError(f"{path} names {settings['_instantiator']!r} to make its model; unite's name {_INSTANTIATOR}")
    arguments = {name: value for name, value in settings.items() if name != "_instantiator"}
    adapters = arguments.get("adapters")
    if not isinstance(adapters, dict) or not adapters:
        raise UserError(f"{path} is damaged: its 'adapters' must be settings by modality")
    _require_arguments(owner, arguments, path)
    _require_class(arguments["encoder"], GenerativeEncoder, path)
    for adapter in adapters.values():
        _require_class(adapter, ModalityAdapter, path)
    rest = [value for name, value in arguments.items() if name not in ("encoder", "adapters")]
    rest += [part["init_args"] for part in (arguments["encoder"], *adapters.values())]
    _require_known_values(rest, path)


def _require_known_values(value: Any, path: Path) -> None:
    """The same for what stands among the arguments."""
    from unite.configurable import Configurable

    if isinstance(value, dict):
        if "class_path" in value:
            _require_class(value, Configurable, path)
            value = value["init_args"]
        for item in value.values():
            _require_known_values(item, path)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_known_values(item, path)
    elif isinstance(value, str) and _can_be_imported(value):
        raise UserError(f"{path} names {value}, which a setting of a model has no place for")


def _require_class(value: Any, base: type, path: Path) -> None:
    keys = {"class_path": str, "init_args": dict}
    if not isinstance(value, dict) or {key: type(item) for key, item in value.items()} != keys:
        raise UserError(f"{path} is damaged: a {base.__name__} must be given by class_path and init_args")
    class_path: str = value["class_path"]
    module_name, _, name = class_path.rpartition(".")
    if module_name.partition(".")[0] == "unite":
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"{path} names {class_path}, which unite {__version__} does not have") from error
    elif module_name in sys.modules:
        module = sys.modules[module_name]
    else:
        raise UserError(
            f"{path} names {class_path}, which is not part of unite: if you trust it, import {module_name or 'it'} "
            "first (on the command line: add --trust, or give a --config of your own that names it)"
        )
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(f"{path} names {class_path}, which is no {base.__name__}")
    _require_arguments(found, value["init_args"], path)


def _require_arguments(owner: type, arguments: Mapping[str, Any], path: Path) -> None:
    known = inspect.signature(owner.__init__).parameters  # type: ignore[misc]  # that of a subclass may differ
    if unknown := [name for name in arguments if name == "self" or name not in known]:
        raise UserError(f"{path} has a setting {unknown[0]!r}, which {owner.__name__} does not have")


def require_known_config(path: Path) -> None:
    """Refuse the config.yaml of a run folder that names foreign classes, commands or further files of settings.

    It is read because a checkpoint lies beside it, not because the user named it.

    Raises:
        UserError: It does, and the user has not said ``--trust``; or it cannot be read.
    """
    import yaml  # not needed by --help

    if _is_trusting:
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {on_one_line(error)}") from error
    require_few_settings(content, path)
    _require_known_strings(content, path)


def require_few_settings(content: Any, path: Path) -> None:
    """Refuse what is nested deeply, or names a block again and again: nine levels unfold to a billion settings.

    Raises:
        UserError: It is, or does.
    """
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        waiting += [(part, depth + 1) for part in parts]
        if (count := count + 1) > MAX_SETTINGS or depth > MAX_DEPTH:
            raise UserError(
                f"{path} has more than {MAX_SETTINGS:,} settings, or nests them more than {MAX_DEPTH} deep: it is "
                "damaged, or made to do harm"
            )


def _require_known_strings(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "config" and item is not None:
                raise UserError(f"{path} has a setting 'config', which names another file of settings; remove it")
            if str(key).split(".")[-1] == "class_path":
                _require_known_name(item, path)
            else:
                _require_known_strings(item, path)
    elif isinstance(value, list):
        for item in value:
            _require_known_strings(item, path)
    elif isinstance(value, str):
        if value.lstrip().startswith("pipe:"):
            raise UserError(f"{path} names a command to run, {value!r}: {_TRUST_HINT}")
        if value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
            raise UserError(f"{path} names another file of settings, {value}: {_TRUST_HINT}")
        if _can_be_imported(value):
            _require_known_name(value, path)


def _require_known_name(name: Any, path: Path) -> None:
    """A class of this package, of the parts of Lightning that a config has, or imported by the user."""
    if isinstance(name, str):
        if "." not in name or name.startswith(KNOWN_MODULES):  # Lightning's short names are of its own classes
            return
        module_name, _, last = name.rpartition(".")
        if isinstance(found := getattr(sys.modules.get(module_name), last, None), type) and _is_of_a_config(found):
            return
    raise UserError(f"{path} names {name}, which is not part of unite: {_TRUST_HINT}")


def _is_of_a_config(found: type) -> bool:
    from lightning.pytorch import Callback, LightningDataModule

    from unite.configurable import Configurable

    return issubclass(found, Callback | LightningDataModule | Configurable)


def _can_be_imported(name: str) -> bool:
    """Whether a string is the name of something in a module that exists here, which nothing imports to find out."""
    if not _DOTTED.fullmatch(name):
        return False
    top, *rest = name.split(".")[:-1]
    if top in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and (spec.origin is not None or _has_code(spec, rest))


def _has_code(spec: ModuleSpec, rest: list[str]) -> bool:
    """Whether a folder without ``__init__.py`` has, at the end of the name or on the way to it, a file of code."""
    for folder in spec.submodule_search_locations or ():
        here = Path(folder)
        for name in rest:
            here = here / name
            if here.with_suffix(".py").is_file() or (here / "__init__.py").is_file():
                return True
    return False
