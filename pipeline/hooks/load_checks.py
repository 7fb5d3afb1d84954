"""Finds all faults of a plugin when it is loaded and built, in words for its author. Pure.

A fault is something that would fail at every call, or silently do nothing: then no part of the plugin is used. Plugins
of API version 1 (those without API_VERSION = 2 or later) used to work in spite of some faults. They still do: for them
these faults are warnings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipeline.hooks import specs
from pipeline.hooks.batches import batch_limits
from pipeline.hooks.context_api import Starting
from pipeline.hooks.limits import declared_by
from pipeline.hooks.progress import takes_progress
from pipeline.hooks.notifier_protocol import BatchNotifier, Notifier
from pipeline.hooks.provider_protocol import AIProvider
from pipeline.hooks.storage_protocol import StorageBackend, StorageBatches, StorageLinking, StorageListing
from pipeline.settings import PluginSettings

IMPL_MARK = f"{specs.PROJECT}_impl"  # pluggy's own, on what @hookimpl marks
SPEC_MARK = f"{specs.PROJECT}_spec"
REGISTERING = "register_"
# The methods of each kind of plugin. The arguments of a method come from its Protocol.
PROTOCOLS: Mapping[str, tuple[type, ...]] = {
    "provider": (AIProvider, Starting),
    "storage": (StorageBackend, StorageListing, StorageLinking, StorageBatches, Starting),
    "notifier": (Notifier, BatchNotifier, Starting),
}
# Names that a plugin of version 1 may use for methods of its own.
SINCE_2 = ("start", "notify_many", "save_many", "register_routes")
YIELDING = ("list",)
FLAGS = ("needs_image", "durable")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a plugin.

    was_harmless: plugins of version 1 work in spite of it.
    method: the method that cannot be called because of it, "" for none.
    """

    text: str
    was_harmless: bool = False
    method: str = ""


def split(findings: Iterable[Finding], is_strict: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the faults and the warnings.

    is_strict: the plugin declares API version 2 or later.
    """
    faults: list[str] = []
    warnings: list[str] = []
    for finding in findings:
        (warnings if finding.was_harmless and not is_strict else faults).append(finding.text)
    return tuple(faults), tuple(warnings)


def hookspecs() -> dict[str, Callable[..., Any]]:
    """Return every hook by name, in the order of specs.py."""
    return {name: value for name, value in vars(specs).items() if hasattr(value, SPEC_MARK)}


def nearest(wanted: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the question whether the most similar name was meant, "" when none is similar.

    prefix: the beginning that all names have in common.
    """
    similar = get_close_matches(wanted, list(names), 1)
    return f" (did you mean {prefix}{similar[0]}?)" if similar else ""


def check_module(plugin: object, api_version: int) -> Iterator[Finding]:
    """Yield the faults of the hooks of a module, or of another object that an entry point names."""
    functions = {name: value for name in dir(plugin) if callable(value := getattr(plugin, name, None))}
    hooks = hookspecs()
    marked = [name for name, function in functions.items() if getattr(function, IMPL_MARK, None) is not None]
    for name in marked:
        yield from _check_hook(name, functions[name], hooks)
    for name in [name for name in hooks if name in functions and name not in marked]:
        if inspect.isroutine(functions[name]) and functions[name] is not hooks[name]:
            yield Finding(f"{name} is never called: write @hookimpl above it", was_harmless=bool(marked))
    if not marked and not any(name in functions for name in hooks):
        yield Finding("it implements no hook: write @hookimpl above a function named as one of the hooks")
    if set(marked) - {name for name in marked if name.startswith(REGISTERING)}:
        for method in ("start", "check", "close"):
            if method in functions and not _is_own(method, api_version):
                yield from _check_call(method, functions[method], _arguments(Starting, method), was_harmless=True)


def check_pair(hook: str, name: object, offered: object) -> Iterator[Finding]:
    """Yield the faults of one (name, factory) pair of a `register_` hook."""
    if not isinstance(name, str) or not name:
        yield Finding(f"{hook} yields {name!r} as a name, which is not a text")
    if hook == "register_settings":
        if not (isinstance(offered, type) and issubclass(offered, PluginSettings)):
            yield Finding(f"{hook} yields {offered!r} for {name!r}, which is not a subclass of PluginSettings")
    elif not callable(offered):
        kind = type(offered).__name__
        yield Finding(f"{hook} yields for {name!r} {_a(kind)}, not a function that makes one: write lambda: {kind}()")


def check_object(kind: str, plugin: object, required: Sequence[str], api_version: int) -> Iterator[Finding]:
    """Yield the faults of a built plugin. required: the methods it must have."""
    if isinstance(plugin, type):
        yield Finding(f"its factory returns the class {plugin.__name__} and not an object of it: call it")
        return
    for method in required:
        if not callable(getattr(plugin, method, None)):
            yield Finding(f"it has no method {method}")
    for protocol in PROTOCOLS[kind]:
        for method in _methods(protocol):
            if callable(function := getattr(plugin, method, None)) and not _is_own(method, api_version):
                arguments = _arguments(protocol, method)
                yield from _check_call(method, function, arguments, was_harmless=method not in required)
    if callable(function := getattr(plugin, "register_routes", None)) and not _is_own("register_routes", api_version):
        yield from _check_call("register_routes", function, ("routes",), was_harmless=True)
    yield from _check_attributes(plugin)
    for fault in declared_by(plugin).faults if kind == "provider" and api_version > 1 else ():
        yield Finding(fault, was_harmless=True)
    if kind == "notifier" and api_version > 1 and callable(getattr(plugin, "notify_many", None)):
        try:
            batch_limits(plugin)
        except ValueError as error:
            yield Finding(str(error))


def check_categories(plugin: object, categories: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each declared category that no photo can have."""
    declared = getattr(plugin, "categories", None)
    if isinstance(declared, Iterable) and not isinstance(declared, (str, bytes)):
        for name in declared:
            if name not in categories:
                valid = ", ".join(categories)
                yield f"categories: {name!r} is none of CATEGORIES, {valid}{nearest(str(name), categories)}"


def _check_hook(name: str, function: Any, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[Finding]:
    options = getattr(function, IMPL_MARK)
    if name not in hooks:
        if not (isinstance(options, Mapping) and options.get("optionalhook")):
            yield Finding(f"there is no hook {name}{nearest(name, hooks)}")
        return
    is_registering = name.startswith(REGISTERING)
    if isinstance(options, Mapping) and (options.get("wrapper") or options.get("hookwrapper")):
        yield Finding(f"{name} is a wrapper, which is never called here: write @hookimpl alone", not is_registering)
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        if not is_registering:
            yield Finding(f"{name} has a yield, so that calling it does nothing", was_harmless=True)
    if is_registering and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        yield Finding(f"{name} is async: it is called before the event loop runs; write a plain def")
    arguments = list(inspect.signature(hooks[name]).parameters)
    for parameter in _parameters(function):
        is_open = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_open or parameter.default is not parameter.empty or parameter.name in arguments:
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                yield Finding(f"{name}: {parameter.name} is behind a *; it is passed by position", not is_registering)
            continue
        has = f"it may name {', '.join(arguments)}" if arguments else "it has none"
        yield Finding(f"{name} has no argument {parameter.name!r}: {has}{nearest(parameter.name, arguments)}")


def _check_call(
    method: str, function: Callable[..., Any], arguments: tuple[str, ...], was_harmless: bool
) -> Iterator[Finding]:
    yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if yields and method not in YIELDING:
        yield Finding(f"{method} has a yield, so that calling it does nothing", was_harmless, method)
    if method in YIELDING and inspect.iscoroutinefunction(function):
        yield Finding(f"{method} is async and yields nothing: write a generator", was_harmless, method)
    keywords = {"progress": None} if method == "analyze" and takes_progress(function) else {}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C, for example
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        wanted = ", ".join(arguments) or "no arguments"
        yield Finding(f"{method}{signature} cannot be called with {wanted}: {error}", was_harmless, method)


def _check_attributes(plugin: object) -> Iterator[Finding]:
    for name in FLAGS:
        flag = getattr(plugin, name, False)
        if not isinstance(flag, bool):
            yield Finding(f"{name} is {flag!r}; it must be True or False", was_harmless=True)
    threads = getattr(plugin, "max_concurrency", 1)
    try:
        if int(threads) < 1:
            yield Finding("its max_concurrency is less than 1")
    except (TypeError, ValueError):
        yield Finding(f"its max_concurrency is {threads!r}, which is not a number")
    if not isinstance(sees := getattr(plugin, "sees", ""), str):
        yield Finding(f"sees is {_a(type(sees).__name__)}, not a text", was_harmless=True)


def _is_own(method: str, api_version: int) -> bool:
    """Return whether a method of that name is the plugin's own: API version 1 has no method of that name."""
    return method in SINCE_2 and api_version == 1


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")]


def _arguments(protocol: type, method: str) -> tuple[str, ...]:
    """Return the names of the arguments that the method is called with."""
    return tuple(inspect.signature(getattr(protocol, method)).parameters)[1:]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _a(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
