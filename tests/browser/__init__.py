"""Tests of the page for photos and of the console, in a real Chromium."""
