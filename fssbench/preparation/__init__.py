"""Getting a data set ready: fetching, unpacking, and the signed-off statement that it is complete."""
