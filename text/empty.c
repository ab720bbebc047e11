/* SPDX-License-Identifier: Apache-2.0 */
/* Keeps the folder a library until its first source lands; delete this file then. */
extern int weft_text_empty;
