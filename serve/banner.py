"""The text that the server prints at its start: the settings with their sources, the models, and requests to try."""

import json
import shlex

from serve.catalog import examples
from serve.catalog.catalog import Catalog
from serve.settings import MB, Settings
from serve.walls import enclosure


def text(settings: Settings, catalog: Catalog) -> str:
    """A line for each important setting, with its source, and for each model."""
    source = settings.sources
    rows = [
        ("port", str(settings.port), source["port"]),
        ("address", settings.bind + ("" if settings.exposed else ", this machine alone"), source["bind"]),
        ("models", f"{settings.model_dir}", source["model_dir"]),
        ("budget", f"{settings.budget_bytes / MB:.0f} MB for models", source["budget_bytes"]),
        ("workers", f"{settings.web_workers} web, {settings.threads} threads a model", source["web_workers"]),
        ("time limit", f"{settings.request_limit:g} s a request", source["request_limit"]),
        ("payload", f"{settings.payload_bytes / MB:g} MB", source["payload_bytes"]),
        ("walls", enclosure.summary(), "the kernel"),
        ("run dir", str(settings.run_dir), source["run_dir"]),
    ]
    shown = [f"  {name:<11}{value:<34} ({why})" for name, value, why in rows]
    for entry in catalog.entries.values():
        if entry.problem:
            what = f"cannot be served: {entry.problem}"
        elif entry.config:
            preload = ", preloaded" if entry.config.preload or {"*", entry.name} & set(settings.preload) else ""
            what = f"{entry.config.handler}, about {entry.config.bytes / MB:.0f} MB{preload}"
        else:
            what = "archive, unpacked on first use"
        shown.append(f"  {'model':<11}{entry.name:<20} {what}")
    if settings.multi_model:
        shown.append(f"  {'model':<11}none until POST /models loads one")
    elif not catalog.entries:
        shown.append(f"  {'model':<11}none found in {settings.model_dir}")
    return "\n".join(["serve", *shown])


def curls(settings: Settings, catalog: Catalog) -> str:
    """Up to three commands to paste, one for each handler."""
    lines, handlers = [], set()
    for entry in catalog.entries.values():
        config = entry.config
        example = examples.of(config) if config and config.handler not in handlers else None
        if config is None or example is None:
            continue
        handlers.add(config.handler)
        body, media = example.body, example.content_type
        command = f"curl {shlex.quote(f'{settings.url}/invocations')} -H 'Content-Type: {media}'"
        if media == "application/json" and _is_object(body):
            named = {settings.model_field: entry.name, **json.loads(body)}
            command += f" -d {shlex.quote(json.dumps(named, ensure_ascii=False))}"
        else:
            command += f" -H 'TargetModel: {entry.name}' -d {shlex.quote(body)}"
        lines.append(command)
    return "\n".join(["", "ready. Try:", *(f"  {line}" for line in lines[:3]), ""]) if lines else "\nready.\n"


def _is_object(body: str) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False
