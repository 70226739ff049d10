"""From tokens to the sequences of a step: packing, shuffling, mixing."""
