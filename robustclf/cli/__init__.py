"""What the command line does: reads tables, audits and cleans labels, writes files and reports."""
