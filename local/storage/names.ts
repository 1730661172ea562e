// The characters that the service allows in names: those safe in S3 keys and those that need only escaping there.
const objectName = /^[\w/!\-.*'() &$@=;:+,?]+$/;
const bucketName = /^[\w!\-.*'() &$@=;:+,?]{1,100}$/;

/** Whether the API accepts an object of this name. Rows in the database may hold any text. */
export function isObjectName(name: string): boolean {
  return objectName.test(name);
}

/** Whether the API accepts a bucket of this name. */
export function isBucketName(name: string): boolean {
  return bucketName.test(name) && name.trim() === name;
}
