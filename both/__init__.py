"""What needs both stages: videos on one side, a run or a cache of tokens on the other.

    predict      a run on new videos: extract, then decode
    look         the same with a figure of where the decoder looked
    reencode     videos of a cache extracted again, to compare (`compare`) or to mend
    report_page  a report with frames of its videos

`extract` and `decode` never meet but here and in the demo.
"""
