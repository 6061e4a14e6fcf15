"""``unite doctor``: what this machine and its installation have, lack, and do slowly."""
