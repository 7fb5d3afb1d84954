/** Builds elements without HTML: the functions of the component <photo-queue>. */

export { fill, h, icon } from "./client/photos/elements.js";
