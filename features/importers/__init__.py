"""Readers of activity in other people's formats, one file a format; each gives a `RawDataset`."""
