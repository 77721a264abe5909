"""What an analyst uses: the SDK (`from minshu import Bureau`) and the command `minshu`."""
