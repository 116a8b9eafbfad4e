"""Several hosts, through Ray: it schedules, sends, retries and scales. Needs the extra `ray`."""
