"""`--help`: the options of configs, in words."""

from __future__ import annotations

from collections.abc import Mapping

from polopt.config.params import Config
from polopt.config.serialize import fields_of


def help_text(
    groups: Mapping[str, type[Config] | Config], presets: Mapping[str, object] | None = None, prog: str = "polopt"
) -> str:
    """The help: every option with type, default, legal range, unit and source, grouped by part."""
    lines = [f"usage: {prog} [options]"]
    if presets:
        lines += ["", "  --preset NAME", f"      one of {', '.join(presets)}; options given beside it come after it"]
    return "\n".join([*lines, *options_text(groups)])


def options_text(groups: Mapping[str, type[Config] | Config]) -> list[str]:
    """The lines of all options, by part."""
    lines = []
    for group, config in groups.items():
        title = ""
        for each in fields_of(config):
            heading = each.choice and f"only with --{each.choice}"
            if "." in each.name and not heading:
                heading = each.name.rsplit(".", 1)[0]
            heading = heading or group or "options"
            if heading != title:
                title = heading
                lines += ["", f"{title}:"]
            about = [each.type, f"default {each.default}", each.range, each.unit, each.source and f"from {each.source}"]
            lines.append(f"  --{each.name}")
            lines.append("      " + "; ".join(part for part in (*about, each.help) if part))
    return lines
