# SPDX-License-Identifier: Apache-2.0
"""A script as a graph: what triggers which response, its steps, and where it leads when it did not help."""

import json

from dscriptlib import explain
from dscriptlib.model import Script

_HEAD = """\
digraph {name} {{
  rankdir=LR;
  node [fontname="sans-serif", fontsize=11, shape=box];
  edge [fontname="sans-serif", fontsize=10];
"""


def dot(script: Script, lang: str) -> str:
    """*script* in the language of graphviz."""
    parts = [_HEAD.format(name=_quoted(script.name))]
    for monitor in script.monitors:
        parts.append(f"  {_quoted(f'monitor {monitor.id}')} [shape=ellipse, label={_quoted(monitor.id)}];\n")
    events = dict.fromkeys(trigger.event for response in script.responses for trigger in response.when if trigger.event)
    for event in events:
        parts.append(f"  {_quoted(f'event {event}')} [shape=cds, label={_quoted(event)}];\n")
    for response in script.responses:
        steps = [f"{number}. {explain.step_sentence(step, lang)}" for number, step in enumerate(response.steps, 1)]
        label = _quoted("\n".join([response.id, *steps])).replace("\\n", "\\l")[:-1] + '\\l"'
        parts.append(f"  {_quoted(f'response {response.id}')} [label={label}];\n")
        for trigger in response.when:
            origin = f"monitor {trigger.monitor}" if trigger.monitor else f"event {trigger.event}"
            before = f"{trigger.after} ≤ {explain.span(trigger.within, lang)}"
            after = f" [label={_quoted(before)}]" if trigger.after else ""
            parts.append(f"  {_quoted(origin)} -> {_quoted(f'response {response.id}')}{after};\n")
        if response.then is not None:
            ends = (_quoted(f"response {name}") for name in (response.id, response.then))
            parts.append(f"  {' -> '.join(ends)} [style=dashed];\n")
    return "".join([*parts, "}\n"])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
