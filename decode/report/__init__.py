"""From finished runs to tables that can be published.

`collect` finds runs, `rows` puts those together that differ in their seed alone, `table` sets them
beside each other and beside `published` figures, `sheet` says it as text cells, which `formats`
writes as Markdown, CSV and LaTeX.
"""
