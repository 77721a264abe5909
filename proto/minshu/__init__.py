"""Minshu for analysts: `from minshu import Bureau, plan`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.client.plan import Plan, plan
    from coordinator.client.release import Release
    from coordinator.client.sdk import Bureau, Job
    from coordinator.client.view import Catalogue, View

__all__ = ["Bureau", "Catalogue", "Job", "Plan", "Release", "View", "plan"]

_HOMES = {
    "Bureau": "coordinator.client.sdk",
    "Catalogue": "coordinator.client.view",
    "Job": "coordinator.client.sdk",
    "Plan": "coordinator.client.plan",
    "Release": "coordinator.client.release",
    "View": "coordinator.client.view",
    "plan": "coordinator.client.plan",
}


def __getattr__(name: str) -> Any:
    # Lazy, because minshu.v1, the lowest layer, lives in this package too and must not pull in the SDK.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
