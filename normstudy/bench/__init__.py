"""Implement `normstudy bench`: compare normstudy's speed with the speed of plain training loops and of the machine."""
