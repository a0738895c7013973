"""Tokens that people already have, into a cache, and a cache's tokens out into plain files.

    importing, import_run   what is asked for; which arrays are there already, are written, fail
    exporting, targets      the same the other way; a folder of files, or one HDF5 file
    sources, layouts        files and folders to arrays with ids; what the axes of an array mean
    names                   file names of exported videos, and the index beside them
    arrays, formats         an array in a file; which module reads which extension
    npy, hdf5, safetensors, torchfile
                            one module a format: how it is read and, but for torch, written

Files of others are untrusted: nothing is unpickled, no link inside a file is followed, and a file
that claims more than it holds is refused.
"""
