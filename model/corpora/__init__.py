"""Corpora: where text comes from, how rows are read, and which rows are fit to train on."""
