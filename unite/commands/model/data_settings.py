"""Settings of the model that follow from the data, and of the data that follow from the model, as plain values.

A yaml names a path, and the model comes to know the elements and sizes that are found there. They are filled in before
anything is made of the settings, so that config.yaml and checkpoints have them, and neither an export nor a run that is
continued has to look at the data again.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule

from unite.modalities.base import ModalityAdapter
from unite.modalities.combined import datamodule_of


def fill_from_data(settings: Any, trained: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fill in arguments of adapters and datamodules that are None, each from the other side.

    Args:
        settings: Parsed settings of a command, with ``model`` and perhaps ``data``; changed in place.
        trained: Hyper-parameters of the checkpoint whose weights the model is to have, since no data can change its
            sizes; None for a new model.

    Returns:
        The datamodules that were made to look at the data, by modality; see :func:`reuse_data`.

    Raises:
        UserError: The data cannot be read, or has too little to learn from.
    """
    made: dict[str, Any] = {}
    for name, adapter in (settings.model.adapters or {}).items():
        adapter_class = _class_of(adapter)
        if not issubclass(adapter_class, ModalityAdapter) or not adapter_class.from_data:
            continue
        if trained is not None:
            own = (trained.get("adapters") or {}).get(name) or {}
            _fill(adapter, own.get("init_args") or {}, only=tuple(adapter_class.from_data))
            _fill(adapter, adapter_class.from_data)
        data = _part(settings.get("data"), name)
        if data is None or not hasattr(_class_of(data), "adapter_settings"):
            continue
        _fill(data, _arguments(adapter), only=(*adapter_class.for_data, *adapter_class.from_data))
        if any(adapter.init_args.get(argument) is None for argument in adapter_class.from_data):
            made[name] = _class_of(data)(**_arguments(data))
            _fill(adapter, made[name].adapter_settings())
            _fill(data, _arguments(adapter), only=tuple(adapter_class.from_data))
    return made


def reuse_data(datamodule: LightningDataModule | None, made: Mapping[str, Any]) -> None:
    """Let the datamodule of a command take over what was read to fill in its settings, where it can.

    Args:
        datamodule: The datamodule.
        made: What :func:`fill_from_data` returned.
    """
    for name, other in made.items():
        part: Any = datamodule_of(datamodule, name)
        if hasattr(part, "reuse"):
            part.reuse(other)


def _part(data: Any, modality: str) -> Any:
    """Settings of the datamodule of a modality: the one there is, or a part of a combined one."""
    if data is None or not data.get("init_args"):
        return None
    parts = data.init_args.get("parts")
    return parts.get(modality) if isinstance(parts, Mapping) else data


def _class_of(settings: Any) -> type[Any]:
    module, _, name = settings.class_path.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def _arguments(settings: Any) -> dict[str, Any]:
    return dict(settings.init_args.as_dict())


def _fill(settings: Any, values: Mapping[str, Any], only: tuple[str, ...] | None = None) -> None:
    """Set those arguments that are None and for which there is a value."""
    for name, value in values.items():
        if name in settings.init_args and settings.init_args[name] is None and (only is None or name in only):
            settings.init_args[name] = value
