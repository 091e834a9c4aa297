"""What a person sees while a run goes on."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from llm_distill.screen import Screen


def test_what_a_model_wrote_does_not_steer_the_terminal() -> None:
    """A training shows its first row, whose answer a model wrote."""
    terminal = StringIO()
    screen = Screen(Console(file=terminal, force_terminal=True, color_system=None))
    screen.say("as learnt:\n[red]\x1b[2Jgone\x9b2J\u202e")
    assert terminal.getvalue() == "           as learnt:\n           [red]\u241b[2Jgone[U+009B]2J[U+202E]\n"
