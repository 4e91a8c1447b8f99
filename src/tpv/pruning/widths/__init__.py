"""How many channels each group keeps: costs, budgets and curves."""
