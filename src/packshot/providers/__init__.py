"""Upstream APIs: rows of data where they are alike, a file each where they behave differently."""
