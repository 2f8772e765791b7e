"""Weights on disk: three layouts (names and orientation) in three containers (files), read and written
one tensor at a time.

A numpy `uint16` array holds the bits of bfloat16 here, as in Paddle's own files.
"""
