"""Stage 2: from a feature cache to a trained decoder, its figures and its predictions.

    config, train             what is asked for; from a cache to run directories
    data                      which frames of the cache become a batch
    decoders, skeleton        the catalogue of decoders, and what most of them are built from
    mixers, ssm               the catalogue of token mixers, the state-space mathematics
    training                  decoders that learn: one, several in a pass, one in several processes
    runs                      the directory that a run leaves
    judging                   windows to videos, metrics, predictions of new ones
    pretraining, released     encoders to begin with, weights of the released code
    ablate, bench, report     sweeps, what decoders cost, tables and pages of many runs

Never sees a video file. Importing this package imports nothing; its modules import torch.
"""
