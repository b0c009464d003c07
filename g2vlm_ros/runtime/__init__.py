"""Runs the network on a device, behind the one Protocol of `stages`."""
