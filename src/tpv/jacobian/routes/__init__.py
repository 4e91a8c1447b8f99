"""Which route each parameter's gradient takes: recorded, planned and verified."""
