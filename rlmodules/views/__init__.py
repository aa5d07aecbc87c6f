"""What people look at: coloured tokens and pages, for the terminal and as one file of HTML."""
