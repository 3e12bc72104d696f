"""Results: the record and the episode table of a test run, the store that holds them, and the leaderboard."""
