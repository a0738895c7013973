"""Text of others' making in a terminal: shown, not obeyed."""

from vis4mer import console


def test_headings_titles_and_cells_of_a_table_are_text(capsys):
    console.print_table(("[x]", "a\x1b[2Jb"), [("[red]", "\ud800")], title="[bold]t\x07")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[bold]t\\x07", "[x]    a\\x1b[2Jb", "[red]  \\ud800"]


def test_a_name_between_colons_is_no_picture(capsys):
    """An id such as `a:smile:b` is copied from what is shown, so it must be shown as it is."""
    console.print_line("a:smile:b")
    console.print_table(("id :x:",), [(":+1:",)], title=":fire:")
    console.print_note(":bug:")
    console.print_error("no video ':smile:'")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["a:smile:b", ":fire:", "id :x:", ":+1:"]
    assert shown.err.splitlines() == [":bug:", "error: no video ':smile:'"]
