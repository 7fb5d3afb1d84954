"""The reference for plugin authors as Markdown, generated from the code: hooks, Protocols, data classes, users of each
hook, and settings of built-in plugins. docs/plugins.md has it between two marks; a test compares the two.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pluggy

from pipeline import errors, hooks
from pipeline.commands.plugin_settings import built_in_settings
from pipeline.hooks import specs
from pipeline.hooks.kinds import BUILT_IN_MODULES
from pipeline.hooks.load_checks import hookspecs
from pipeline.settings import PluginSettings, Settings

# A line of a docstring that says what a parameter, an optional attribute or an error means: an item of a list.
PARAMETER = re.compile(r"(`\w+ = [^`]+`|[a-z_]+(, [a-z_]+)*|[A-Z][a-z]+[A-Z]\w+(\([^)]*\))?): ")
# The errors that plugins raise.
ERRORS: tuple[type[Exception], ...] = (
    errors.RetryableJobError,
    errors.PermanentJobError,
    errors.NotReady,
    errors.DependencyUnavailable,
    errors.ValidationError,
    errors.ConfigurationError,
    errors.SandboxLimit,
)


def reference_lines() -> list[str]:
    """Return the lines of the reference."""
    parts = (_hook_lines, _protocol_lines, _data_lines, _used_lines, _error_lines, _user_lines, _setting_lines)
    return [line for part in parts for line in part()]


def hook_users() -> dict[str, list[str]]:
    """Return hook -> the built-in plugin modules that implement it, as pluggy has registered them."""
    registry = pluggy.PluginManager(specs.PROJECT)
    registry.add_hookspecs(specs)
    for module in BUILT_IN_MODULES:
        registry.register(importlib.import_module(module), name=module)
    users = {name: getattr(registry.hook, name).get_hookimpls() for name in hookspecs()}
    return {name: sorted(each.plugin_name for each in implementations) for name, implementations in users.items()}


def _hook_lines() -> Iterator[str]:
    yield "### The hooks"
    for hook in hookspecs().values():
        may_wait = not hook.__name__.startswith("register_")
        yield from _documented("####", _signature(hook, "def or async def" if may_wait else "def"), hook)
    yield from ("", "### What a module with hooks may have too", "", "Functions of the module, without `@hookimpl`.")
    for name, function in vars(hooks.Starting).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            yield from _documented("####", _signature(function), function)


def _protocol_lines() -> Iterator[str]:
    yield from ("", "### What a plugin is")
    for protocol in _exported(lambda each: getattr(each, "_is_protocol", False)):
        yield from _documented("####", protocol.__name__, protocol)
        for name, method in vars(protocol).items():
            if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_")):
                yield from _documented("#####", _signature(method), method)


def _data_lines() -> Iterator[str]:
    yield from ("", "### What it gets and gives")
    for kind in _exported(is_dataclass):
        yield from _documented("####", kind.__name__, kind)
        yield from ("", "```", *(_field(field) for field in fields(kind)), "```")


def _used_lines() -> Iterator[str]:
    yield from ("", "### What it may use")
    of = Settings.with_plugin_variables
    yield from _documented("####", "PluginSettings", PluginSettings)
    yield from _documented("#####", "is_active -> bool", PluginSettings.is_active)
    yield from _documented("####", f"Settings.{of.__name__}({_parameters(of)}) -> Settings", of)
    for function in filter(inspect.isfunction, (getattr(hooks, name) for name in hooks.__all__)):
        yield from _documented("####", _signature(function), function)


def _user_lines() -> Iterator[str]:
    yield from ("", "### Who uses which hook", "", "| hook | built-in plugins that implement it |", "|---|---|")
    for hook, users in hook_users().items():
        yield f"| `{hook}` | {', '.join(f'`{user}`' for user in users)} |"


def _setting_lines() -> Iterator[str]:
    yield from ("", "### The settings of built-in plugins", "")
    yield from ("| setting | default | what it is, and why |", "|---|---|---|")
    for own in built_in_settings():
        default = "" if own.default is None else str(own.default)
        yield f"| `{own.variable}` | {f'`{default}`' if default else ''} | {own.why} |"


def _documented(level: str, title: str, what: object) -> Iterator[str]:
    # Markdown takes <NAME> for HTML.
    lines = (inspect.getdoc(what) or "").replace("<", r"\<").splitlines()
    yield from ("", f"{level} `{title}`", "", *(f"- {line}" if PARAMETER.match(line) else line for line in lines))


def _error_lines() -> Iterator[str]:
    yield from ("", "### What it raises", "", "All are in `pipeline.errors`.")
    for error in ERRORS:
        yield from _documented("####", f"{error.__name__}({_parameters(error.__init__)})", error)
        if error is errors.ValidationError:
            one = errors.ValidationError.of
            yield from _documented("#####", f"ValidationError.{one.__name__}({_parameters(one)})", one)


def _signature(function: Callable[..., Any], written: str = "") -> str:
    """Return the signature of a function. written: the keyword before its name, "" to take it from the types."""
    returns = str(inspect.signature(function).return_annotation)
    # "X | Awaitable[X]": the author may write either def or async def.
    plain, either, _ = returns.partition(" | Awaitable[")
    if not either and returns.startswith("Awaitable["):
        plain, either = returns.removeprefix("Awaitable[").removesuffix("]"), "awaited"
    if inspect.iscoroutinefunction(function):
        written = written or "async def"
    written = written or ("def or async def" if either else "def")
    return f"{written} {function.__name__}({_parameters(function)}) -> {plain}"


def _parameters(function: Callable[..., Any]) -> str:
    given, has_star = [], False
    for each in inspect.signature(function).parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not has_star:
            given.append("*")
        has_star |= each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        kind = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        default = "" if each.default is each.empty else f" = {each.default!r}"
        given.append(f"{stars}{each.name}: {kind}{default}")
    return ", ".join(given)


def _field(field: Any) -> str:
    default = "" if field.default is MISSING else f" = {field.default!r}"
    return f"{field.name}: {field.type}{default}"


def _exported(is_wanted: Callable[[Any], bool]) -> Iterator[type]:
    exported = (getattr(hooks, name) for name in hooks.__all__)
    return (each for each in exported if inspect.isclass(each) and is_wanted(each))
