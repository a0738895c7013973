"""Text of others' making in a terminal: shown, not obeyed."""

from vis4mer import console


def test_headings_titles_and_cells_of_a_table_are_text(capsys):
    console.print_table(("[x]", "a\x1b[2Jb"), [("[red]", "\ud800")], title="[bold]t\x07")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[bold]t\\x07", "[x]    a\\x1b[2Jb", "[red]  \\xd800"]
