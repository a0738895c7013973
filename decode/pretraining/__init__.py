"""LSMCL: pretraining an encoder on long and short clips of the same timelines."""
