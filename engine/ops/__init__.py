"""The operators: what differs between devices in computing."""
