"""unstir"""
