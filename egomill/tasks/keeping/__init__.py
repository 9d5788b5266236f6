"""What one asks of a lake that is there: plan, adopt, verify, repair, forget, lineage, housekeeping."""
