"""What a person sees and does in a real Chromium: the page for photos and the console."""
