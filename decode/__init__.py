"""Stage 2: from a feature cache to a trained decoder, its figures and its predictions.

    config, train, runs         what is asked for, the loop, the directory that it leaves
    plan, clips, loader         which frames of the cache become a batch
    learner, optim, device      one decoder that learns
    evaluate, metrics, predict  windows to videos, figures, predictions of new ones
    batch, decoders, skeleton   what a decoder is given, the catalogue of decoders
    mixers, ssm                 the catalogue of token mixers, the state-space mathematics
    bench                       what decoders cost, beside one another

Never sees a video file. Importing this package imports nothing; its modules import torch.
"""
