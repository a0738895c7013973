"""The feature cache: one directory, readable as Zarr, in which an entry is whole or is not there.

    cache                       open, ask, read, add: the one object to begin with
    directory, entries          where a cache may stand, its groups and spec; which entries it has
    spec, records, tasks        what made the numbers, what an entry holds, labels
    layout, keys, quantise      bytes of a shard, names on the disk, stored types
    backing, reader             where the bytes of an object lie, frames out of them
    decoded, stored             the same frames as numbers, and in the stored type
    writer, commits             frames in, and the record that makes them an entry
    files, fields, wording      whole files by rename, JSON of others, lines for people
    catalog, summary, failures  what a cache holds, what could not be extracted
    verify, gc                  checking, and clearing what killed processes left
    repair, mending             what is bad taken from a copy, or let go
    claims, workers, status     who is at which video, when several processes fill one cache
    views, windows, dataset     tokens as a decoder asks for them
    digest, diff, merge         do two caches hold the same, and several made one
    pooling, packing, packs     entries rearranged: pooled copies, a few large files
    copying, replacement, standing, provenance
                                what these have in common
    remote, transfer            places elsewhere, and what goes there and comes from there
    convert                     features of other tools, in and out

Everything that is read may come from somebody else and is checked. Knows nothing of videos,
backbones or decoders, and its modules import no torch.
"""
