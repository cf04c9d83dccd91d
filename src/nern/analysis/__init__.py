"""Looking at runs. The modules that draw import matplotlib, which takes a third of a second: they are imported where a
picture is asked for."""
