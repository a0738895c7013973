"""What decoders cost: their speed and peak memory at several numbers of tokens, side by side.

    subjects   what is to be compared, from the words of the command line
    child      one decoder in a process of its own, which measures itself (`memory`: how)
    worker     such a process as its parent sees it: asked, and possibly killed
    measure    all of them in alternation
    records    what came out, beside what a paper measured
    figure     the same as a picture

Reads no cache: tokens are random.
"""
