"""One file for each group of figures. Each gives ``Figure`` values and every round behind them."""
