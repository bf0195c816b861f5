"""Ten multiple-choice tasks made from the shipped text's held-out documents; ours, not the tasks of any paper."""
