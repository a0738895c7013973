"""The feature cache: one directory, readable as Zarr, in which an entry is whole or is not there.

    cache                       open, ask, read, add: the one object to begin with
    spec, records, tasks        what made the numbers, what an entry holds, labels
    layout, keys, quantise      bytes of a shard, names on the disk, stored types
    reader, writer, files       frames out, frames in, whole files by rename
    catalog, summary, failures  what a cache holds, what could not be extracted
    verify, gc                  checking, and clearing what killed processes left
    claims, workers, status     who is at which video, when several processes fill one cache
    views, windows, dataset     tokens as a decoder asks for them

Everything that is read may come from somebody else and is checked. Knows nothing of videos,
backbones or decoders, and its modules import no torch.
"""
