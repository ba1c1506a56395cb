"""Everything that runs the flows for real: configurations, registration, automations, one machine up and down."""
